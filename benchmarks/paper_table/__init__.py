"""The tables of the EvoGM paper, with figures of our runs beside the paper's."""
