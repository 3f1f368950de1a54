//! What the user says in variables: `FGS_PRELOAD_*`. Understood once, at the first collective, as they were when the library
//! was loaded.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::time::Duration;

use forgetscope::control::check_name;

use crate::environment;
use crate::layout::Layout;

/// Fewer elements are losses, norms and counters.
const MIN_ELEMENTS: u64 = 1024;
/// How long nothing may come through before that is said.
const PATIENCE: Duration = Duration::from_secs(120);
/// Every variable that begins like these.
const KNOWN: [&str; 13] = [
    "FGS_PRELOAD",
    "FGS_PRELOAD_FLUSH",
    "FGS_PRELOAD_JOB",
    "FGS_PRELOAD_LAYOUT",
    "FGS_PRELOAD_MIN_ELEMENTS",
    "FGS_PRELOAD_PARAMETERS",
    "FGS_PRELOAD_PATIENCE",
    "FGS_PRELOAD_PREFIX",
    "FGS_PRELOAD_RANKS",
    "FGS_PRELOAD_SCALE",
    "FGS_PRELOAD_STEP",
    "FGS_PRELOAD_TASK",
    "FGS_PRELOAD_TASKS",
];

/// The variables, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Collectives of fewer elements are left alone.
    pub min_elements: u64,
    /// Only communicators of this size count.
    pub ranks: Option<u32>,
    /// Collectives of a step.
    pub step: Option<usize>,
    pub layout: Option<Layout>,
    /// What a reduced gradient is multiplied by.
    pub scale: f64,
    /// Gathered buffers are parameters that stay where they are.
    pub parameters: bool,
    /// After a sampled step, training waits until its records are written.
    pub flush: bool,
    /// In front of the names of all tensors.
    pub prefix: Option<String>,
    /// Which task begins at which step.
    pub tasks: BTreeMap<u64, String>,
}

/// Reads a variable. A function, so that tests need not change the process's environment.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<&'a OsStr>;

impl Settings {
    /// The settings; else a sentence that names the variable.
    pub fn read(environment: Environment) -> Result<Self, String> {
        if let Some(name) = KNOWN.iter().find(|name| environment(name).is_some_and(|value| value.to_str().is_none())) {
            return Err(format!("{name}: its value is not UTF-8"));
        }
        let text = |name: &str| {
            let text = environment(name).and_then(OsStr::to_str).map(str::trim);
            text.filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let number = |name: &str, least: u64, most: u64| match text(name) {
            None => Ok(None),
            Some(text) => match text.parse::<u64>() {
                Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
                _ => Err(format!("{name}: '{text}' is not a whole number from {least} to {most}")),
            },
        };
        let scale = match text("FGS_PRELOAD_SCALE") {
            None => 1.0,
            Some(text) => match text.parse::<f64>() {
                Ok(scale) if scale.is_finite() && scale > 0.0 => scale,
                _ => return Err(format!("FGS_PRELOAD_SCALE: '{text}' is not a finite number above zero")),
            },
        };
        let switch = |name: &str| match text(name).as_deref() {
            None | Some("0") => Ok(false),
            Some("1") => Ok(true),
            Some(text) => Err(format!("{name}: '{text}' is neither 0 nor 1")),
        };
        switch("FGS_PRELOAD")?;
        number("FGS_PRELOAD_PATIENCE", 0, u64::MAX)?;
        let layout = match text("FGS_PRELOAD_LAYOUT") {
            None => None,
            Some(path) => Some(Layout::read(&path).map_err(|error| format!("FGS_PRELOAD_LAYOUT: {path}: {error}"))?),
        };
        Ok(Self {
            min_elements: number("FGS_PRELOAD_MIN_ELEMENTS", 1, 1 << 40)?.unwrap_or(MIN_ELEMENTS),
            ranks: number("FGS_PRELOAD_RANKS", 1, u64::from(u32::MAX))?.map(|ranks| ranks as u32),
            step: number("FGS_PRELOAD_STEP", 1, crate::signature::LONGEST as u64)?.map(|step| step as usize),
            layout,
            scale,
            parameters: switch("FGS_PRELOAD_PARAMETERS")?,
            flush: switch("FGS_PRELOAD_FLUSH")?,
            prefix: text("FGS_PRELOAD_PREFIX"),
            tasks: tasks(text("FGS_PRELOAD_TASK"), text("FGS_PRELOAD_TASKS"))?,
        })
    }
}

/// `FGS_PRELOAD_TASK=legal` and `FGS_PRELOAD_TASKS=legal@0,code@200`.
fn tasks(first: Option<String>, list: Option<String>) -> Result<BTreeMap<u64, String>, String> {
    let mut tasks: BTreeMap<u64, String> = first.map(|name| (0, name)).into_iter().collect();
    for entry in list.iter().flat_map(|list| list.split(',')).map(str::trim) {
        let wrong = || format!("FGS_PRELOAD_TASKS: '{entry}' is not NAME@STEP, as in legal@0,code@200");
        let (name, step) = entry.rsplit_once('@').ok_or_else(wrong)?;
        let step: u64 = step.parse().map_err(|_| wrong())?;
        if name.is_empty() {
            return Err(wrong());
        }
        if tasks.insert(step, name.into()).is_some() {
            return Err(format!("FGS_PRELOAD_TASKS: two tasks begin at step {step}"));
        }
    }
    if let Some(error) = tasks.values().find_map(|name| check_name(name).err()) {
        return Err(format!("FGS_PRELOAD_TASKS: {error}"));
    }
    if let Some((name, _)) = tasks.values().zip(tasks.values().skip(1)).find(|(task, next)| task == next) {
        return Err(format!("FGS_PRELOAD_TASKS: '{name}' begins twice in a row"));
    }
    Ok(tasks)
}

/// Names of variables that look like ours and are none: misspelt, or of another version.
pub fn unknown<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut unknown: Vec<_> = names.filter(|name| name.starts_with("FGS_PRELOAD") && !KNOWN.contains(name)).collect();
    unknown.sort_unstable();
    unknown
}

/// `FGS_PRELOAD_PATIENCE`, needed before anything else; what is wrong with it is said with the others.
pub fn patience() -> Duration {
    let seconds = environment::text("FGS_PRELOAD_PATIENCE").and_then(|text| text.trim().parse().ok());
    seconds.map_or(PATIENCE, Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, String> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsStr::new(*value));
        Settings::read(&find)
    }

    #[test]
    fn everything_has_a_default() {
        let settings = read(&[("FGS_PRELOAD_STEP", " ")]).unwrap();
        assert_eq!((settings.min_elements, settings.ranks, settings.step, settings.scale), (1024, None, None, 1.0));
        assert!(!settings.parameters && settings.layout.is_none() && settings.tasks.is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        for (name, value) in [
            ("FGS_PRELOAD", "yes"),
            ("FGS_PRELOAD", "false"),
            ("FGS_PRELOAD_MIN_ELEMENTS", "0"),
            ("FGS_PRELOAD_RANKS", "four"),
            ("FGS_PRELOAD_STEP", "5000"),
            ("FGS_PRELOAD_SCALE", "-1"),
            ("FGS_PRELOAD_SCALE", "nan"),
            ("FGS_PRELOAD_PARAMETERS", "yes"),
            ("FGS_PRELOAD_FLUSH", "2"),
            ("FGS_PRELOAD_TASKS", "legal"),
            ("FGS_PRELOAD_TASKS", "@5"),
            ("FGS_PRELOAD_TASKS", "a@1,b@1"),
            ("FGS_PRELOAD_TASKS", "a@1,"),
            ("FGS_PRELOAD_TASKS", "a@1,a@5"),
            ("FGS_PRELOAD_TASKS", "a\x1b[31m@1"),
            ("FGS_PRELOAD_PATIENCE", "abc"),
            ("FGS_PRELOAD_LAYOUT", "/nonexistent"),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert!(error.starts_with(&format!("{name}: ")), "{error}");
        }
        let bytes = OsStr::from_bytes(b"legal\xff");
        let error = Settings::read(&|name| (name == "FGS_PRELOAD_TASK").then_some(bytes)).unwrap_err();
        assert_eq!(error, "FGS_PRELOAD_TASK: its value is not UTF-8");
    }

    #[test]
    fn every_variable_is_known() {
        let asked = std::cell::RefCell::new(std::collections::BTreeSet::new());
        Settings::read(&|name| {
            asked.borrow_mut().insert(name.to_owned());
            None
        })
        .unwrap();
        assert!(asked.into_inner().iter().eq(KNOWN.iter()));
        let names = ["FGS_PRELOAD_TAKS", "FGS_EVERY", "PATH"].into_iter().chain(KNOWN);
        assert_eq!(unknown(names), ["FGS_PRELOAD_TAKS"]);
    }

    #[test]
    fn tasks_begin_at_steps() {
        let settings = read(&[("FGS_PRELOAD_TASK", "legal"), ("FGS_PRELOAD_TASKS", "code@200, e@mail@300")]).unwrap();
        let tasks: Vec<_> = settings.tasks.iter().map(|(&step, name)| (step, name.as_str())).collect();
        assert_eq!(tasks, [(0, "legal"), (200, "code"), (300, "e@mail")]);
    }
}
