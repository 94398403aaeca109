//! The id by which the kernel's tables know a policy.
//!
//! It follows from all that the policy was compiled to, its name included. So a policy that nobody has edited keeps its id,
//! over restarts as well, and an edited one has a new one: the rules of both can stand in the tables side by side while one
//! container after the other moves, and none ever sees half of each.

use crate::{
    catalog::{Catalog, kernel_id},
    compile::{self, Compiled},
    source::{Policy, SourceError},
};

/// Checks the policy against the catalogue and compiles it under its own id.
pub fn compile(catalog: &Catalog, policy: &Policy) -> Result<Compiled, SourceError> {
    let mut compiled = compile::compile(catalog, policy, 0)?;
    // Whatever is added to what a policy compiles to is in this text, provided that it has an order.
    compiled.entry.id = kernel_id(&format!("{compiled:?}"));
    Ok(compiled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{SHIPPED_DEFAULT, SHIPPED_UPSTREAM, parse};

    fn id(text: &str) -> u32 {
        compile(&Catalog::shipped().unwrap(), &parse("p.yaml", text).unwrap()).unwrap().entry.id
    }

    #[test]
    fn the_same_policy_has_the_same_id() {
        for text in [SHIPPED_DEFAULT, SHIPPED_UPSTREAM] {
            assert!((0..8).all(|_| id(text) == id(text)));
        }
        assert_eq!(id(SHIPPED_DEFAULT), id(&format!("# a comment\n{SHIPPED_DEFAULT}")));
    }

    #[test]
    fn every_difference_that_matters_gives_another_id() {
        let mut ids = vec![id(SHIPPED_DEFAULT), id(SHIPPED_UPSTREAM)];
        for (from, to) in [
            ("name: default", "name: other"),
            ("mode: detect", "mode: enforce"),
            ("allowLoosening: false", "allowLoosening: true"),
            ("onAttachFailure: allow", "onAttachFailure: deny"),
            ("  mode: detect", "  mode: detect\n  select: {pods: [web]}"),
            ("  mode: detect", "  mode: detect\n  requireBackend: lsm"),
            ("window: 1h", "window: 10m"),
            ("exe, cwd]", "exe]"),
            (
                "    - categories: [diagnostics]\n      action: alert",
                "    - categories: [diagnostics]\n      action: block",
            ),
            (
                "    - categories: [diagnostics]\n      action: alert",
                "    - categories: [diagnostics]\n      action: alert\n      severity: critical",
            ),
        ] {
            assert!(SHIPPED_DEFAULT.contains(from), "{from}");
            ids.push(id(&SHIPPED_DEFAULT.replacen(from, to, 1)));
        }
        ids.push(id(&SHIPPED_UPSTREAM.replace("exceptRepeats: 1h", "exceptRepeats: 2h")));
        ids.push(id(&SHIPPED_UPSTREAM.replace("[localhost,", "[")));
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all);
        assert!(!ids.contains(&0));
    }
}
