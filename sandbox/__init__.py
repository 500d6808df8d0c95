"""An interpreter for model-written code, in a sealed process. See README.md for what it covers."""
from .interpreter import MODES, Interpreter, Observation, SandboxError, set_sandbox

__all__ = ["MODES", "Interpreter", "Observation", "SandboxError", "set_sandbox"]
