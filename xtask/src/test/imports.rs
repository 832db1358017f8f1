// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which file of a crate uses which other, found from its paths: `use` declarations, paths that
//! begin with `crate`, `self` or `super`, and names that were imported. A re-export stands for the
//! file that defines the name, and is itself no use of it. Tests are left out, and so is what a
//! macro makes of other tokens.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, Macro, UseTree};

use crate::error::{Error, Result};

/// Arrows from file to file, each with the names that the first takes from the second.
pub(super) type Arrows = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// The arrows between the files of the crate whose sources are below `root` (`mm/src/`).
///
/// # Errors
///
/// A file is not Rust.
pub(super) fn arrows(files: &[(String, String)], root: &str) -> Result<Arrows> {
    let mut tree = Tree::default();
    tree.modules.push(Module { file: format!("{root}lib.rs"), ..Module::default() });
    let mut parsed = Vec::new();
    for (path, text) in files {
        let Some(inner) = path.strip_prefix(root).and_then(|inner| inner.strip_suffix(".rs"))
        else {
            continue;
        };
        let mut names: Vec<_> = inner.split('/').collect();
        if ["lib", "mod"].contains(names.last().unwrap_or(&"")) {
            names.pop();
        }
        if names == ["main"] || names.contains(&"tests") {
            continue;
        }
        let syntax = syn::parse_file(text).map_err(|e| Error::Task(format!("{path}: {e}")))?;
        let module = tree.place(&names);
        tree.modules[module].file.clone_from(path);
        parsed.push((module, syntax.items));
    }
    for (module, items) in &parsed {
        tree.read(*module, items);
    }
    Ok(tree.resolve_all())
}

#[derive(Default)]
struct Module {
    file: String,
    above: usize,
    children: BTreeMap<String, usize>,
    /// Imported names, and what each stands for.
    imports: BTreeMap<String, Vec<String>>,
    /// Those of them that the module only hands on.
    handed_on: BTreeSet<String>,
    /// Modules of which all names are imported.
    globs: Vec<Vec<String>>,
    items: BTreeSet<String>,
    /// Every path in the code.
    paths: BTreeSet<Vec<String>>,
    /// Declared for tests only.
    tests: BTreeSet<String>,
}

/// The modules of a crate; the first is its root.
#[derive(Default)]
struct Tree {
    modules: Vec<Module>,
}

/// Most re-exports that are followed for one name.
const MOST_STEPS: usize = 16;

impl Tree {
    /// The module with these names below the root, made if it is new.
    fn place(&mut self, names: &[&str]) -> usize {
        names.iter().fold(0, |above, name| {
            if let Some(&known) = self.modules[above].children.get(*name) {
                return known;
            }
            let file = self.modules[above].file.clone();
            self.modules.push(Module { file, above, ..Module::default() });
            let new = self.modules.len() - 1;
            self.modules[above].children.insert((*name).to_owned(), new);
            new
        })
    }

    fn read(&mut self, module: usize, items: &[Item]) {
        for item in items {
            if let Item::Mod(inner) = item {
                let name = inner.ident.to_string();
                if for_tests(&inner.attrs) {
                    self.modules[module].tests.insert(name);
                } else if let Some((_, items)) = &inner.content {
                    let file = self.modules[module].file.clone();
                    self.modules.push(Module { file, above: module, ..Module::default() });
                    let new = self.modules.len() - 1;
                    self.modules[module].children.insert(name, new);
                    self.read(new, items);
                }
                continue;
            }
            self.modules[module].items.extend(defined_name(item));
            Reader(&mut self.modules[module]).visit_item(item);
        }
    }

    fn resolve_all(&self) -> Arrows {
        let mut arrows = Arrows::new();
        for (at, module) in self.modules.iter().enumerate().filter(|(at, _)| !self.is_test(*at)) {
            let imports =
                module.imports.iter().filter(|(name, _)| !module.handed_on.contains(*name));
            let imports = imports.map(|(_, path)| (path, self.resolve(at, path, 0)));
            // An import of a module is no use of it yet: what is named through it is.
            let imports = imports.filter_map(|(path, found)| match found {
                Some(Found::Item(module)) => Some((path, module)),
                _ => None,
            });
            let globs = module.globs.iter().map(|path| (path, self.resolve(at, path, 0)));
            let paths = module.paths.iter().map(|path| (path, self.resolve(at, path, 0)));
            let named =
                globs.chain(paths).filter_map(|(path, found)| Some((path, found?.module())));
            for (path, target) in imports.chain(named) {
                let (from, to) = (&module.file, &self.modules[target].file);
                if from != to && !self.is_test(target) {
                    let names = arrows.entry(from.clone()).or_default().entry(to.clone());
                    names.or_default().extend(path.last().cloned());
                }
            }
        }
        arrows
    }

    /// Whether the module, or one above it, is declared for tests only.
    fn is_test(&self, mut module: usize) -> bool {
        while module != 0 {
            let above = &self.modules[self.modules[module].above];
            if above.tests.iter().any(|name| above.children.get(name) == Some(&module)) {
                return true;
            }
            module = self.modules[module].above;
        }
        false
    }

    /// What `path` names, as module `from` sees it; `None` for names of other crates.
    fn resolve(&self, from: usize, path: &[String], steps: usize) -> Option<Found> {
        if steps > MOST_STEPS {
            return None;
        }
        let mut at = from;
        let mut rest = path;
        let mut rooted = false;
        while let Some((first, others)) = rest.split_first() {
            match first.as_str() {
                "crate" => at = 0,
                "self" => {}
                "super" => at = self.modules[at].above,
                _ => break,
            }
            rooted = true;
            rest = others;
        }
        while let Some((name, others)) = rest.split_first() {
            match self.lookup(at, name, steps) {
                Some(Found::Module(module)) => (at, rooted) = (module, true),
                Some(item) => return Some(item),
                // What a macro defines is not seen: it is taken to be here.
                None => return rooted.then_some(Found::Item(at)),
            }
            rest = others;
        }
        Some(Found::Module(at))
    }

    fn lookup(&self, at: usize, name: &str, steps: usize) -> Option<Found> {
        let module = &self.modules[at];
        if let Some(&child) = module.children.get(name) {
            return Some(Found::Module(child));
        }
        if module.items.contains(name) {
            return Some(Found::Item(at));
        }
        if let Some(path) = module.imports.get(name) {
            // `use name;` of another crate stands for itself.
            return if path.len() == 1 && path[0] == name {
                None
            } else {
                self.resolve(at, path, steps + 1)
            };
        }
        module.globs.iter().find_map(|path| match self.resolve(at, path, steps + 1) {
            Some(Found::Module(other)) if other != at && steps < MOST_STEPS => {
                self.lookup(other, name, steps + 1)
            }
            _ => None,
        })
    }
}

#[derive(Clone, Copy)]
enum Found {
    Module(usize),
    /// Something defined in this module.
    Item(usize),
}

impl Found {
    const fn module(self) -> usize {
        match self {
            Self::Module(module) | Self::Item(module) => module,
        }
    }
}

/// Collects the paths and imports of one module.
struct Reader<'a>(&'a mut Module);

impl Reader<'_> {
    fn import(&mut self, mut path: Vec<String>, tree: &UseTree) {
        match tree {
            UseTree::Path(part) => {
                path.push(part.ident.to_string());
                self.import(path, &part.tree);
            }
            UseTree::Name(last) if last.ident == "self" => {
                self.0.imports.insert(path.last().cloned().unwrap_or_default(), path);
            }
            UseTree::Name(last) => {
                let name = last.ident.to_string();
                path.push(name.clone());
                self.0.imports.insert(name, path);
            }
            UseTree::Rename(last) => {
                if last.ident != "self" {
                    path.push(last.ident.to_string());
                }
                self.0.imports.insert(last.rename.to_string(), path);
            }
            UseTree::Glob(_) => self.0.globs.push(path),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(path.clone(), tree);
                }
            }
        }
    }

    /// Paths in the tokens of a macro call.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(name) => {
                    if colons < 2 {
                        self.end(&mut path);
                    }
                    path.push(name.to_string());
                    colons = 0;
                    continue;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.end(&mut path);
                    colons = 0;
                    self.tokens(group.stream());
                }
                _ => {
                    self.end(&mut path);
                    colons = 0;
                }
            }
        }
        self.end(&mut path);
    }

    fn end(&mut self, path: &mut Vec<String>) {
        if path.len() > 1 {
            self.0.paths.insert(std::mem::take(path));
        }
        path.clear();
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !for_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !for_tests(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let known: BTreeSet<_> = self.0.imports.keys().cloned().collect();
        self.import(Vec::new(), &item.tree);
        if !matches!(item.vis, syn::Visibility::Inherited) {
            let new = self.0.imports.keys().filter(|name| !known.contains(*name)).cloned();
            self.0.handed_on.extend(new);
        }
    }

    // The path in `pub(in path)` takes nothing.
    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<_> = path.segments.iter().map(|part| part.ident.to_string()).collect();
        self.0.paths.insert(names);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.visit_path(&call.path);
        self.tokens(call.tokens.clone());
    }
}

/// Whether this is compiled for tests only.
fn for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).any(|attribute| {
        attribute.meta.require_list().is_ok_and(|list| {
            let text = list.tokens.to_string();
            text == "test" || text.starts_with("all (test") || text.starts_with("all(test")
        })
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn defined_name(item: &Item) -> Option<String> {
    match item {
        Item::Const(item) => Some(item.ident.to_string()),
        Item::Enum(item) => Some(item.ident.to_string()),
        Item::Fn(item) => Some(item.sig.ident.to_string()),
        Item::Macro(item) => item.ident.as_ref().map(ToString::to_string),
        Item::Static(item) => Some(item.ident.to_string()),
        Item::Struct(item) => Some(item.ident.to_string()),
        Item::Trait(item) => Some(item.ident.to_string()),
        Item::Type(item) => Some(item.ident.to_string()),
        Item::Union(item) => Some(item.ident.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::arrows;

    fn of(files: &[(&str, &str)]) -> Vec<String> {
        let owned: Vec<_> =
            files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        let arrows = arrows(&owned, "p/src/").unwrap();
        let all = arrows.iter().flat_map(|(from, to)| to.keys().map(move |to| (from, to)));
        all.map(|(from, to)| format!("{} {}", &from[6..], &to[6..])).collect()
    }

    #[test]
    fn follows_imports_and_paths_to_the_file_that_defines_the_name() {
        let found = of(&[
            ("p/src/lib.rs", "mod a; mod b; pub use b::deep::Thing;"),
            ("p/src/a.rs", "use crate::Thing; use super::b; fn f() { b::other(); }"),
            ("p/src/b/mod.rs", "mod deep; pub use deep::Thing; pub(in crate::a) fn other() {}"),
            ("p/src/b/deep.rs", "pub struct Thing;"),
        ]);
        assert_eq!(found, ["a.rs b/deep.rs", "a.rs b/mod.rs"]);
        let found = of(&[
            ("p/src/lib.rs", "mod a; pub use a::Thing; fn f(_: Thing) {}"),
            ("p/src/a.rs", "pub struct Thing;"),
        ]);
        assert_eq!(found, ["lib.rs a.rs"]);
    }

    #[test]
    fn leaves_out_tests_and_declarations() {
        let found = of(&[
            ("p/src/lib.rs", "mod a; #[cfg(test)] mod b;"),
            ("p/src/a.rs", "#[cfg(test)] mod tests { use crate::b::X; }"),
            ("p/src/b.rs", "use crate::a::Y;"),
        ]);
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn sees_paths_in_macro_calls_and_globs() {
        let found = of(&[
            ("p/src/lib.rs", "mod a; mod b; mod c;"),
            ("p/src/a.rs", "fn f() { vec![crate::b::X] }"),
            ("p/src/b.rs", "pub struct X;"),
            ("p/src/c.rs", "use super::b::*; fn f() { println!(\"{}\", super::a::f()) }"),
        ]);
        assert_eq!(found, ["a.rs b.rs", "c.rs a.rs", "c.rs b.rs"]);
    }
}
