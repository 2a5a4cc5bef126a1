"""The search: `EvoGM`, the paper's method, and `SurrogateEvoGM`; imports torch and evox only."""
