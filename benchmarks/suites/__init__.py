"""What is merged: the suites, how their experts are trained, and the controls."""
