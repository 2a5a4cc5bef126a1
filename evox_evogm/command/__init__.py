"""The command `evogm`: imports everything, is imported by nothing."""
