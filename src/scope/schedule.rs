//! Which steps are sampled, and which tensors in them.

use super::{Error, Options, Result};
use regex_lite::Regex;
use serde::Deserialize;

/// Overrides the sampling of the tensors whose name matches.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Regular expression, searched in the tensor's name.
    pub tensors: String,
    /// Turns the match around: the rule is about the tensors that do not match.
    #[serde(default)]
    pub invert: bool,
    /// Sample every so many steps; 0: never.
    pub every: Option<u64>,
    pub start_step: Option<u64>,
    pub end_step: Option<u64>,
    /// Where the rule stands, for messages.
    #[serde(skip)]
    pub source: &'static str,
}

impl Rule {
    /// FGS_INCLUDE: nothing but what matches; FGS_EXCLUDE: nothing that matches.
    pub fn from_environment(include: Option<String>, exclude: Option<String>) -> Vec<Self> {
        let rule = |tensors, invert, source| Self { tensors, invert, every: Some(0), source, ..Self::default() };
        let include = include.map(|tensors| rule(tensors, true, "FGS_INCLUDE"));
        include.into_iter().chain(exclude.map(|tensors| rule(tensors, false, "FGS_EXCLUDE"))).collect()
    }

    /// The same from the options struct.
    pub fn from_options(include: Option<String>, exclude: Option<String>) -> Vec<Self> {
        let mut rules = Self::from_environment(include, exclude);
        for rule in &mut rules {
            rule.source = if rule.invert { "fgs_options.include" } else { "fgs_options.exclude" };
        }
        rules
    }

    /// The rule is an include or exclude, and so is an earlier one, which it takes the place of: options that are set in
    /// two sources hold as the later one says.
    pub fn replaces(&self, earlier: &Self) -> bool {
        !self.source.is_empty() && !earlier.source.is_empty() && self.invert == earlier.invert
    }

    /// The regular expression compiles.
    pub fn check(&self) -> Result<()> {
        self.regex().map(drop)
    }

    fn regex(&self) -> Result<Regex> {
        let source = if self.source.is_empty() { "select.tensors" } else { self.source };
        Regex::new(&self.tensors).map_err(|error| {
            Error::Config(format!("{source}: '{}' is not a regular expression: {error}", self.tensors))
        })
    }
}

/// When one tensor is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub every: u64,
    pub start: u64,
    pub end: u64,
}

impl Schedule {
    /// The schedule of the tensor called `name`.
    pub fn of(options: &Options, name: &str) -> Result<Self> {
        let mut schedule = Self::common(options);
        for rule in &options.select {
            if rule.regex()?.is_match(name) != rule.invert {
                schedule.every = rule.every.unwrap_or(schedule.every);
                schedule.start = rule.start_step.unwrap_or(schedule.start);
                schedule.end = rule.end_step.unwrap_or(schedule.end);
            }
        }
        Ok(schedule)
    }

    /// The schedule of tensors that no rule is about.
    pub fn common(options: &Options) -> Self {
        Self { every: options.every, start: options.start_step, end: options.end_step }
    }

    /// The tensor is measured in this step. Cost: one division.
    #[inline]
    pub fn is_due(&self, step: u64) -> bool {
        self.every != 0 && step >= self.start && step < self.end && (step - self.start).is_multiple_of(self.every)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_matching_rule_decides() {
        let rule = |tensors: &str, every| Rule { tensors: tensors.into(), every: Some(every), ..Rule::default() };
        let options = Options { select: vec![rule("attn", 5), rule(r"layers\.0\.", 0)], ..Options::default() };
        let every = |name: &str| Schedule::of(&options, name).unwrap().every;
        assert_eq!((every("layers.1.attn.q"), every("layers.0.attn.q"), every("head")), (5, 0, 10));
    }

    #[test]
    fn include_and_exclude() {
        let select = Rule::from_options(Some("attn".into()), Some("bias".into()));
        let options = Options { select, ..Options::default() };
        let every = |name: &str| Schedule::of(&options, name).unwrap().every;
        assert_eq!((every("attn.weight"), every("attn.bias"), every("mlp.weight")), (10, 0, 0));
    }

    #[test]
    fn steps() {
        let schedule = Schedule { every: 10, start: 5, end: 30 };
        let due: Vec<_> = (0..50).filter(|&step| schedule.is_due(step)).collect();
        assert_eq!(due, [5, 15, 25]);
        assert!(!Schedule { every: 0, start: 0, end: 9 }.is_due(0));
    }
}
