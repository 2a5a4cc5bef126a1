"""The commands of `evogm`, a file each. What takes long to import is imported when it runs."""
