//! The demonstration inside a stock nginx.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Guests;
use super::nginx_host::{self, Nginx};
use super::stock::{Demo, Peers, Proxy, ROUTES, Words};

/// Show filters at work inside a stock nginx
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    guests: Guests,
    /// The program
    #[arg(long, env = "PXG_LAB_NGINX", value_name = "FILE")]
    nginx: PathBuf,
    /// ngx_http_proxy_golang_module.so for it
    #[arg(long, env = "PXG_LAB_NGINX_MODULE", value_name = "FILE")]
    module: PathBuf,
    /// Call the filters from Lua, by the library in this folder
    #[arg(long, env = "PXG_LAB_LUA", value_name = "FOLDER")]
    lua: Option<PathBuf>,
    /// Keep running afterwards, and show each request that comes
    #[arg(long)]
    serve: bool,
}

const HOW: &str =
    "nginx as it was released, its module in C, which loads the filters' libraries in each worker:";
const HOW_FROM_LUA: &str = "nginx as it was released; lines of Lua in its configuration call the filters by lua-resty-proxy-golang. \
     One of them\n   wants whole bodies of responses, whose heads Lua's phases cannot hold: the module runs it beside them:";

const WORDS: Words = Words {
    name: "nginx",
    again: "cargo xtask demo --host nginx --serve",
    counters: "The module's counters are in memory that all workers share; a location shows them as text, JSON, or for \
               Prometheus.",
};

const FROM_LUA: Words = Words {
    name: "nginx with Lua",
    again: "cargo xtask demo --host openresty --serve",
    counters: WORDS.counters,
};

/// The filter that Lua's phases cannot serve.
const WANTS_WHOLE_RESPONSES: &str = "body-rewrite";

/// Where Debian has nginx's Lua module, and what that needs.
const LUA_MODULES: &str = "load_module /usr/lib/nginx/modules/ndk_http_module.so;\n\
                           load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;\n";

/// What is wrong in a configuration, what of the good one it is instead of, and what `nginx -t` says of it.
const BAD: [(&str, &str, &str, &str); 5] = [
    (
        "a file that is not there",
        "guest {c};",
        "guest /nowhere/policy.so;",
        "/nowhere/policy.so",
    ),
    (
        "a file that is no library",
        "guest {c};",
        "guest {folder}/text.so;",
        "text.so",
    ),
    (
        "a filter that the library has not",
        "filter trace-id;",
        "filter trace-idd;",
        "trace-idd",
    ),
    (
        "a configuration that the guest refuses",
        "request delete x-debug",
        "request destroy x-debug",
        "destroy",
    ),
    (
        "a word that the module does not know",
        "reply_refilter on;",
        "reply_refilter perhaps;",
        "perhaps",
    ),
];

/// Runs it. An error if a check does not hold.
pub async fn run(args: &Args) -> Result<()> {
    let folder = tempfile::tempdir().context("make a folder for the configuration")?;
    let peers = Peers::start().await?;
    let (upstream, authority) = (peers.upstream.address(), peers.authority.address());
    let config = |template: &str, http1: &str, h2c: &str| {
        let access_log = if args.serve { "/dev/stdout" } else { "off" };
        let path = |path: &Path| format!("{:?}", path.display().to_string());
        template
            .replace("{module}", &path(&args.module))
            .replace(
                "{lua_modules}",
                if args.lua.is_some() { LUA_MODULES } else { "" },
            )
            .replace(
                "{lua_path}",
                &args.lua.as_deref().map(lua_path).unwrap_or_default(),
            )
            .replace("{locations}", &locations(args.lua.is_some()))
            .replace("{access_log}", access_log)
            .replace("{folder}", &folder.path().display().to_string())
            .replace("{go}", &path(&args.guests.go))
            .replace("{c}", &path(&args.guests.c))
            .replace("{rust}", &path(&args.guests.rust))
            .replace("{upstream}", &upstream.to_string())
            .replace("{authority}", &authority.to_string())
            .replace("{http1}", http1)
            .replace("{h2c}", h2c)
    };
    let template = include_str!("nginx.conf");
    let good =
        |http1: SocketAddr, h2c: SocketAddr| config(template, &http1.to_string(), &h2c.to_string());
    let nginx = Nginx::start(&args.nginx, folder.path(), &good).await?;
    let (words, how) = match &args.lua {
        None => (WORDS, HOW),
        Some(_) => (FROM_LUA, HOW_FROM_LUA),
    };
    let mut demo = Demo::new(words, peers, Proxy::Nginx(nginx));
    demo.overture(&version(&args.nginx)?, how, &args.guests)?;
    let shown = async {
        demo.shows().await?;
        demo.printer.title(
            "Bad configurations",
            "`nginx -t`, and a reload, load each guest in a short-lived child and let it judge its configuration: nothing\n\
             changes, and the reason names the file and the line.",
        );
        std::fs::write(folder.path().join("text.so"), "no library")?;
        // A test of a configuration opens what it is to listen at.
        let sockets =
            ["http1", "h2c"].map(|n| format!("unix:{}/{n}.sock", folder.path().display()));
        for (what, of, instead, said) in BAD {
            let text = config(&template.replacen(of, instead, 1), &sockets[0], &sockets[1]);
            let output = nginx_host::check(&args.nginx, folder.path(), &text).await?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let line = text.lines().find(|line| line.contains("[emerg]"));
            let line = line.unwrap_or("nothing").to_owned();
            println!();
            demo.printer.note(&format!("{what}:"));
            demo.printer
                .note(line.split_once("[emerg] ").map_or(&*line, |(_, rest)| rest));
            demo.printer.check(
                !output.status.success() && line.contains(said) && line.contains("bad.conf:"),
                "it is refused, and the message has the value, the file and the line",
            );
        }
        Ok(())
    };
    let shown: Result<()> = shown.await;
    // What nginx said belongs to what went wrong.
    let said = nginx_host::log(folder.path());
    if let Err(error) = shown {
        bail!("{error:#}\nnginx said:\n{said}");
    }
    if args.serve {
        return serve(demo, &folder.path().join("nginx.conf")).await;
    }
    demo.finale(&said).await
}

fn locations(from_lua: bool) -> String {
    let locations = ROUTES.iter().map(|(path, filters)| {
        let chain = match filters {
            [] => "proxy_golang off;".to_owned(),
            filters if from_lua && !filters.contains(&WANTS_WHOLE_RESPONSES) => {
                from_lua_phases(filters)
            }
            filters => format!("proxy_golang {};", filters.join(" ")),
        };
        format!("        location {path} {{ {chain} proxy_pass http://demo; }}\n")
    });
    locations.collect()
}

/// A chain, called phase by phase.
fn from_lua_phases(filters: &[&str]) -> String {
    let names: Vec<_> = filters.iter().map(|name| format!("\"{name}\"")).collect();
    let pxg = "require(\"resty.proxy_golang\")";
    format!(
        "\n            access_by_lua_block {{ {pxg}.access {{ {} }} }}\n            \
         header_filter_by_lua_block {{ {pxg}.header_filter() }}\n            \
         body_filter_by_lua_block {{ {pxg}.body_filter() }}\n            \
         log_by_lua_block {{ {pxg}.log() }}\n           ",
        names.join(", ")
    )
}

fn lua_path(folder: &Path) -> String {
    format!(
        "lua_package_path \"{}/?.lua;;\";\n    lua_check_client_abort on;\n",
        folder.display()
    )
}

/// `nginx version: nginx/VERSION`, on its standard error.
fn version(nginx: &Path) -> Result<String> {
    let said = std::process::Command::new(nginx).arg("-v").output()?;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    let version = said.trim().rsplit('/').next().unwrap_or_default();
    Ok(version.to_owned())
}

/// Until it is interrupted.
async fn serve(mut demo: Demo, config: &Path) -> Result<()> {
    let address = demo.address();
    demo.try_it(
        config,
        &format!("curl 'http://{address}/pxg?format=prometheus'"),
    );
    if let Proxy::Nginx(nginx) = &mut demo.proxy {
        nginx.wait().await?;
    }
    bail!("nginx ended");
}
