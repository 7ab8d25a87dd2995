"""A report as text: terminal, Markdown, HTML, LaTeX, CSV, JSON."""
