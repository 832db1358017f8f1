// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The modules of a crate, and which of them a path names.

use std::collections::{BTreeMap, BTreeSet};

use syn::Item;

use super::contents::{Contents, for_tests};

/// Arrows from file to file, each with the names that the first takes from the second.
pub(in crate::test) type Arrows = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

#[derive(Default)]
struct Module {
    file: String,
    above: usize,
    children: BTreeMap<String, usize>,
    contents: Contents,
    /// Declared for tests only.
    tests: BTreeSet<String>,
}

/// The modules of a crate; the first is its root.
pub(super) struct Tree {
    modules: Vec<Module>,
}

/// Most re-exports that are followed for one name.
const MOST_STEPS: usize = 16;

impl Tree {
    /// The tree of a crate whose root is in `file`.
    pub(super) fn new(file: String) -> Self {
        Self { modules: vec![Module { file, ..Module::default() }] }
    }

    /// Adds the module with these names below the root, which is in `file` and has `items`.
    pub(super) fn add(&mut self, names: &[&str], file: &str, items: &[Item]) {
        let module = self.place(names);
        file.clone_into(&mut self.modules[module].file);
        self.read(module, items);
    }

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
            self.modules[module].contents.read(item);
        }
    }

    /// The arrows between all files.
    pub(super) fn arrows(&self) -> Arrows {
        let mut arrows = Arrows::new();
        for (at, module) in self.modules.iter().enumerate().filter(|(at, _)| !self.is_test(*at)) {
            let contents = &module.contents;
            let imports =
                contents.imports.iter().filter(|(name, _)| !contents.handed_on.contains(*name));
            let imports = imports.map(|(_, path)| (path, self.resolve(at, path, 0)));
            // An import of a module is no use of it yet: what is named through it is.
            let imports = imports.filter_map(|(path, found)| match found {
                Some(Found::Item(module)) => Some((path, module)),
                _ => None,
            });
            let globs = contents.globs.iter().map(|path| (path, self.resolve(at, path, 0)));
            let paths = contents.paths.iter().map(|path| (path, self.resolve(at, path, 0)));
            // A name alone is never a module, but a variable that is called like one.
            let paths = paths
                .filter(|(path, found)| path.len() > 1 || !matches!(found, Some(Found::Module(_))));
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
        if module.contents.items.contains(name) {
            return Some(Found::Item(at));
        }
        if let Some(path) = module.contents.imports.get(name) {
            // `use name;` of another crate stands for itself.
            return if path.len() == 1 && path[0] == name {
                None
            } else {
                self.resolve(at, path, steps + 1)
            };
        }
        module.contents.globs.iter().find_map(|path| match self.resolve(at, path, steps + 1) {
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
