"""forgetscope for PyTorch: `attach` a model and its optimizer, train as ever."""

from .parameters import Measured, measured_parameters
from .rules import Rule, load_rules
from .torch_scope import TorchScope, attach

__all__ = ["Measured", "Rule", "TorchScope", "attach", "load_rules", "measured_parameters"]
