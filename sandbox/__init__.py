"""An interpreter for model-written code, in a sealed process. See README.md for what it covers."""
from .interpreter import MODES, Interpreter, Observation, SandboxError, seconds_of_sessions, set_sandbox

__all__ = ["MODES", "Interpreter", "Observation", "SandboxError", "seconds_of_sessions", "set_sandbox"]
