"""An interpreter for model-written code, in a sealed process. It imports nothing of the project."""
