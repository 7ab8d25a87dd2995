"""The specs: the only place for parameters. They import nothing heavier than pydantic."""
