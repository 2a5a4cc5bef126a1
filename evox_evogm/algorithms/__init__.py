"""The searches, a file each: `EvoGM`, `SurrogateEvoGM` and `GradientSearch`, on torch and evox."""

# EvoX first: it registers the plugin, for which it imports this package.
import evox  # noqa: F401  isort: skip
