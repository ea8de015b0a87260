//! An adapter: everything the suite must know of a host, as data. Adding a host takes one file of this form and no code.
//!
//! Texts are templates: `{name}` is replaced by a variable, `{{` and `}}` are braces. A template that names a variable
//! which does not exist is refused when the adapter is read, with the place and the variables that there are.

mod ports;
mod read;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::subject::Expect;

pub(crate) use ports::Ports;
pub(crate) use read::{fill, signal};

/// The version of this format.
pub(crate) const PROTOCOL: u32 = 1;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Adapter {
    /// The version of this format, 1.
    pub(crate) protocol: u32,
    /// The host's name in reports.
    pub(crate) name: String,
    /// Variables of the adapter's own: the first of `env`'s value and `first_of` that exists.
    #[serde(default)]
    pub(crate) variables: BTreeMap<String, Variable>,
    /// Prints the host's version.
    pub(crate) version: Command,
    /// Starts the host in the foreground.
    pub(crate) start: Start,
    /// When it accepts connections.
    pub(crate) ready: Sign,
    /// Where it listens; the first group of `match` is `ADDRESS:PORT`.
    pub(crate) listen: Listen,
    /// How it takes changed configurations.
    #[serde(default)]
    pub(crate) reload: Option<Act>,
    /// How it ends gracefully.
    pub(crate) stop: Act,
    /// Its admin listener: counters, and the level of its log.
    #[serde(default)]
    pub(crate) admin: Option<Admin>,
    /// Files to write, and the pieces of which they are made.
    #[serde(default)]
    pub(crate) config: Config,
    /// What the host's own limits are, for cases that go up to them.
    #[serde(default)]
    pub(crate) limits: Limits,
    /// What it can't be asked: an option, a protocol or a case, each with its reason.
    #[serde(default)]
    pub(crate) not_applicable: BTreeMap<String, String>,
    /// Known failures, by rule or case.
    #[serde(default)]
    pub(crate) expect: BTreeMap<String, Expect>,
    /// The file that it was read from.
    #[serde(skip)]
    pub(crate) file: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Variable {
    /// An environment variable whose value wins.
    #[serde(default)]
    pub(crate) env: Option<String>,
    /// Paths, of which the first that exists is taken.
    #[serde(default)]
    pub(crate) first_of: Vec<String>,
    /// How to get it, where none exists.
    #[serde(default)]
    pub(crate) hint: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Command {
    pub(crate) command: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Start {
    /// Program and arguments. An argument that is exactly `{arguments}` is replaced by `config.arguments`, piece by piece.
    pub(crate) command: Vec<String>,
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    /// The signal that ends the host with all its processes, for a suite that is killed; KILL if it is not said, which is
    /// right for hosts of one process. When the suite ends a host itself, it kills the whole process group.
    #[serde(default)]
    pub(crate) last_signal: Option<String>,
}

/// Something that the host prints, or a file that it writes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sign {
    /// A regular expression that a line of its output, standard or error, matches.
    #[serde(default)]
    pub(crate) line: Option<String>,
    /// Expressions that a line of each worker matches: each has to come `{workers}` times.
    #[serde(default)]
    pub(crate) each_worker: Vec<String>,
    /// A line that says that it will not serve, though it runs.
    #[serde(default)]
    pub(crate) refused: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listen {
    /// For a host that cannot choose a port itself and tell: `"127.0.0.1:{port}"`. See `{port}` in [`Ports`].
    #[serde(default)]
    pub(crate) address: Option<String>,
    /// Where it takes HTTP/2 without TLS, if that is another address: `"127.0.0.1:{h2c_port}"`.
    #[serde(default)]
    pub(crate) h2c: Option<String>,
    /// A line of output with the address in its first group.
    #[serde(default)]
    pub(crate) line: Option<String>,
    /// A file with the address of an admin listener...
    #[serde(default)]
    pub(crate) admin_file: Option<String>,
    /// ...the path to get there...
    #[serde(default)]
    pub(crate) get: Option<String>,
    /// ...and what in the answer is the address: its first group.
    #[serde(default)]
    pub(crate) matches: Option<String>,
}

/// A listener for operators.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Admin {
    /// Where it is, for a host that cannot choose a port itself and tell: `"127.0.0.1:{admin_port}"`...
    #[serde(default)]
    pub(crate) address: Option<String>,
    /// ...or a line of output with its address in the first group...
    #[serde(default)]
    pub(crate) line: Option<String>,
    /// ...or a file that holds it.
    #[serde(default)]
    pub(crate) file: Option<String>,
    /// `GET` of this path answers the counters in Prometheus' text form.
    #[serde(default)]
    pub(crate) metrics: String,
    /// What stands before the names of chapter 15.4.
    #[serde(default)]
    pub(crate) prefix: String,
    /// A counter among them that rises each time the host has brought the others up to date; none if they always are.
    #[serde(default)]
    pub(crate) handed_over: Option<String>,
    /// Method and path that set the level of the log to `{value}`: trace, debug, info, warn, error or off.
    #[serde(default)]
    pub(crate) log_level: Option<(String, String)>,
}

/// A signal or a command.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Act {
    /// `HUP`, `TERM`, `INT`, `QUIT`, `USR1`, `USR2`, `WINCH`.
    #[serde(default)]
    pub(crate) signal: Option<String>,
    #[serde(default)]
    pub(crate) command: Vec<String>,
    /// A line that says that a reload has been taken.
    #[serde(default)]
    pub(crate) done: Option<String>,
    /// Expressions that a line of each worker matches: a reload has been taken when each has come `{workers}` times.
    #[serde(default)]
    pub(crate) each_worker: Vec<String>,
    /// A line that says that it has been refused.
    #[serde(default)]
    pub(crate) refused: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) files: Vec<ConfigFile>,
    /// Pieces for the start command.
    #[serde(default)]
    pub(crate) arguments: Vec<String>,
    /// Once for each library: `{guest}` its path, `{guest_name}`.
    #[serde(default)]
    pub(crate) guest: String,
    /// Once for each instance: `{instance} {filter} {guest} {guest_name} {config} {config_json} {options}`.
    #[serde(default)]
    pub(crate) instance: String,
    /// Pieces of the start command for each instance of the chain, in its order.
    #[serde(default)]
    pub(crate) instance_arguments: Vec<String>,
    /// Pieces of the start command for each route: `{chain_arguments}` stands for those of its chain.
    #[serde(default)]
    pub(crate) route_arguments: Vec<String>,
    /// Once for each route: `{route} {prefix} {chain} {own} {absent}`, and `{overrides}`: chain and absent.
    #[serde(default)]
    pub(crate) route: String,
    /// For a route without `{overrides}`, instead of `route`.
    #[serde(default)]
    pub(crate) route_plain: Option<String>,
    /// Once for each instance in a route's chain, in its order.
    #[serde(default)]
    pub(crate) chain: String,
    /// For an instance whose configuration a route overrides, instead of `chain`: besides `{config}` of the override.
    #[serde(default)]
    pub(crate) chain_override: String,
    /// Once more for such an instance, as `{own}` of the route: for hosts that say the override beside the chain.
    #[serde(default)]
    pub(crate) own: String,
    /// Once for each instance that is not in a route's chain.
    #[serde(default)]
    pub(crate) absent: String,
    /// The routes with the longest prefix first, for hosts that take the first match.
    #[serde(default)]
    pub(crate) routes_longest_first: bool,
    /// Between the options of an instance; a line end where it is not said.
    #[serde(default)]
    pub(crate) options_separator: Option<String>,
    /// Between the pieces of `{chain}` and `{absent}`.
    #[serde(default)]
    pub(crate) separator: String,
    /// What a case can ask of an instance or of the host, and how it is written: `{value}`.
    #[serde(default)]
    pub(crate) options: BTreeMap<String, String>,
    /// The same for options of the whole host.
    #[serde(default)]
    pub(crate) host_options: BTreeMap<String, String>,
    /// And for those that stand elsewhere in its configuration: `{main_options}`.
    #[serde(default)]
    pub(crate) main_options: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigFile {
    pub(crate) path: String,
    pub(crate) text: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// Most bytes of one read of the host, for views that may exceed `max_body` by one.
    pub(crate) read_bytes: u64,
    /// The hold time of chapter 7.4 in milliseconds.
    pub(crate) hold_time_ms: u64,
    /// The longest time, in milliseconds, that the host is given for one step.
    pub(crate) patience_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            read_bytes: 1 << 20,
            hold_time_ms: 100,
            patience_ms: 10_000,
        }
    }
}
