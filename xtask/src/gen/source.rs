//! The public items of the ABI crate as its source has them: what the headers must not lack.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use syn::{Expr, ImplItem, Item, Lit, Type, Visibility};

use super::names::{NOT_IN_C, TOOL_MODULES};

/// What the source has.
#[derive(Default)]
pub(super) struct Source {
    /// The files in the order of the module tree, for cbindgen.
    pub(super) files: Vec<PathBuf>,
    /// `repr(C)` structs with their members.
    pub(super) structs: Vec<(String, Vec<String>)>,
    /// `repr(transparent)` newtypes with the names of their constants.
    pub(super) newtypes: Vec<(String, Vec<String>)>,
    /// Constants outside newtypes.
    pub(super) free: Vec<String>,
    /// String constants with value and documentation: cbindgen leaves them out.
    pub(super) strings: Vec<(String, String, String)>,
    /// Type aliases.
    pub(super) aliases: Vec<String>,
}

impl Source {
    /// Reads the crate whose root file is `lib`.
    pub(super) fn read(lib: &Path) -> Result<Self> {
        let mut source = Self::default();
        source.file(lib)?;
        Ok(source)
    }

    fn file(&mut self, path: &Path) -> Result<()> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let file = syn::parse_file(&text).with_context(|| format!("parse {}", path.display()))?;
        self.files.push(path.to_owned());
        for item in &file.items {
            self.item(item, path)
                .with_context(|| format!("in {}", path.display()))?;
        }
        Ok(())
    }

    fn item(&mut self, item: &Item, path: &Path) -> Result<()> {
        match item {
            Item::Mod(m) if m.content.is_none() => {
                let name = m.ident.to_string();
                if !TOOL_MODULES.contains(&name.as_str()) {
                    let folder = path.parent().context("a file is in a folder")?;
                    self.file(&folder.join(format!("{name}.rs")))?;
                }
            }
            Item::Struct(s) if public(&s.vis) => {
                let name = s.ident.to_string();
                match repr(&s.attrs).as_deref() {
                    Some("C") => {
                        let members = s.fields.iter().filter_map(|f| f.ident.as_ref());
                        let members = members.map(ToString::to_string).collect();
                        self.structs.push((name, members));
                    }
                    Some("transparent") => self.newtypes.push((name, Vec::new())),
                    _ => bail!(
                        "public struct {name} has neither #[repr(C)] nor #[repr(transparent)]: C cannot have it"
                    ),
                }
            }
            Item::Impl(i) if i.trait_.is_none() => self.constants(i)?,
            Item::Const(c) if public(&c.vis) => {
                let name = c.ident.to_string();
                if let Expr::Lit(lit) = &*c.expr
                    && let Lit::Str(s) = &lit.lit
                {
                    self.strings.push((name, s.value(), doc(&c.attrs)));
                } else {
                    self.free.push(name);
                }
            }
            Item::Type(t) if public(&t.vis) => self.aliases.push(t.ident.to_string()),
            Item::Enum(e) if public(&e.vis) => bail!(
                "public enum {}: the ABI has open integer newtypes only (PXG-ABI-006)",
                e.ident
            ),
            Item::Union(u) if public(&u.vis) => bail!("public union {}: not in the ABI", u.ident),
            Item::Static(s) if public(&s.vis) => {
                bail!("public static {}: not in the ABI", s.ident)
            }
            _ => {}
        }
        Ok(())
    }

    fn constants(&mut self, block: &syn::ItemImpl) -> Result<()> {
        let Type::Path(ty) = &*block.self_ty else {
            return Ok(());
        };
        let ty = ty
            .path
            .require_ident()
            .context("an impl of a plain type")?
            .to_string();
        for item in &block.items {
            let ImplItem::Const(c) = item else { continue };
            let full = format!("{ty}::{}", c.ident);
            if !public(&c.vis) || NOT_IN_C.iter().any(|(n, _)| *n == full) {
                continue;
            }
            let Some((_, names)) = self.newtypes.iter_mut().find(|(n, _)| *n == ty) else {
                bail!(
                    "{full} is no constant of a newtype: list it in NOT_IN_C of xtask/src/gen/names.rs"
                );
            };
            names.push(c.ident.to_string());
        }
        Ok(())
    }
}

fn public(vis: &Visibility) -> bool {
    matches!(vis, Visibility::Public(_))
}

fn repr(attrs: &[syn::Attribute]) -> Option<String> {
    attrs
        .iter()
        .find(|a| a.path().is_ident("repr"))
        .and_then(|a| a.parse_args::<syn::Ident>().ok())
        .map(|i| i.to_string())
}

fn doc(attrs: &[syn::Attribute]) -> String {
    let mut lines = Vec::new();
    for attr in attrs.iter().filter(|a| a.path().is_ident("doc")) {
        if let syn::Meta::NameValue(pair) = &attr.meta
            && let Expr::Lit(lit) = &pair.value
            && let Lit::Str(s) = &lit.lit
        {
            lines.push(s.value().trim().to_owned());
        }
    }
    lines.join("\n")
}
