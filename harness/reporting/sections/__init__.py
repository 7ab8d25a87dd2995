"""The parts of a report: answer, tables, remarks."""
