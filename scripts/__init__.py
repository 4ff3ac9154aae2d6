"""Programs beside the package: they measure it, write its tables and try it for hours."""
