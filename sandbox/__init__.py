"""An interpreter for model-written code, in a sealed process. See README.md for what it covers."""
from .interpreter import Interpreter, Observation, set_sandbox

__all__ = ["Interpreter", "Observation", "set_sandbox"]
