"""What is generated from the specs: JSON Schemas and the reference in docs/specs.md."""
