"""The shield: rules that no learned output crosses."""
