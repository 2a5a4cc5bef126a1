"""The search: `EvoGM`, the paper's method, and `SurrogateEvoGM`; imports torch and evox only."""

# EvoX first: it registers the plugin, for which it imports this package.
import evox  # noqa: F401  isort: skip
