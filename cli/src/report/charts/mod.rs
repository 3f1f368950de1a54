//! Figures as SVG, drawn by the program itself.
//!
//! Colours are CSS variables of the page, so that light, dark and print each have their own. No figure says anything by
//! colour alone: lines are labelled where they end, cells and points say their values when pointed at.
//!
//! | file | concept |
//! |---|---|
//! | `scale` | from data to the page, and round numbers on the way |
//! | `frame` | axes, grid and the tasks' stretches |
//! | `labels` | names at the ends of lines, without overlap |
//! | `lines` | series over steps |
//! | `heat` | layers × heads |
//! | `intervals` | values with error bars |
//! | `against_null` | values beside the range of their null |
//! | `spectrum` | stems on an axis that is logarithmic on both sides of 0 |
//! | `bars` | shares as bars |
//! | `paint` | colours |

pub mod against_null;
pub mod bars;
mod frame;
pub mod heat;
pub mod intervals;
mod labels;
pub mod lines;
pub mod paint;
mod scale;
pub mod spectrum;

pub use frame::Stretch;
pub use paint::Paint;

/// A coordinate: a tenth of a pixel is more than anybody sees.
fn px(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), String::from)
}
