//! Where a forecast comes from: the runs that it was calibrated on, and whether another run is like them.

use serde_json::{Value, json};

use crate::recording::catalog::Catalog;

/// A run, by what tells it from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The random id of its ring, in hexadecimal.
    pub instance: String,
    /// What the trainer calls it.
    pub run: String,
    pub tasks: Vec<String>,
    /// Elements of all registered tensors.
    pub parameters: u64,
    pub layers: u64,
}

impl Origin {
    pub fn of(catalog: &Catalog) -> Self {
        let tensors = || catalog.names.tensors.values();
        Origin {
            instance: catalog.facts.instance.clone(),
            run: catalog.names.attributes.get("run").cloned().unwrap_or_default(),
            tasks: catalog.names.tasks.values().cloned().collect(),
            parameters: tensors().map(|tensor| tensor.rows.max(1).saturating_mul(tensor.cols.max(1))).sum(),
            layers: tensors().map(|tensor| u64::try_from(tensor.layer + 1).unwrap_or(0)).max().unwrap_or(0),
        }
    }

    /// Whether both are models of the same size and depth. Data, learning rate and much else may still differ.
    pub fn has_the_shape_of(&self, other: &Self) -> bool {
        (self.parameters, self.layers) == (other.parameters, other.layers)
    }

    pub fn to_json(&self) -> Value {
        json!({
            "instance": self.instance, "run": self.run, "tasks": self.tasks,
            "parameters": self.parameters, "layers": self.layers,
        })
    }

    pub fn from_json(value: &Value) -> Option<Self> {
        let text = |key: &str| value[key].as_str().map(String::from);
        let tasks = value["tasks"].as_array()?.iter().map(|task| task.as_str().map(String::from));
        Some(Origin {
            instance: text("instance")?,
            run: text("run")?,
            tasks: tasks.collect::<Option<_>>()?,
            parameters: value["parameters"].as_u64()?,
            layers: value["layers"].as_u64()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forgetscope::ring::{Entry, TensorEntry};

    #[test]
    fn the_shape_is_that_of_the_tensors() {
        let mut catalog = Catalog::default();
        for (id, layer, rows, cols) in [(0, -1, 100, 8), (1, 0, 8, 8), (2, 1, 8, 0)] {
            catalog.names.add(Entry::Tensor(TensorEntry { id, layer, rows, cols, ..TensorEntry::default() }));
        }
        catalog.names.add(Entry::Task { id: 0, name: "legal".into() });
        let origin = Origin::of(&catalog);
        assert_eq!((origin.parameters, origin.layers, origin.tasks.len()), (872, 2, 1));
        assert_eq!(Origin::from_json(&origin.to_json()), Some(origin.clone()));
        assert!(origin.has_the_shape_of(&origin) && !origin.has_the_shape_of(&Origin { layers: 3, ..origin.clone() }));
    }
}
