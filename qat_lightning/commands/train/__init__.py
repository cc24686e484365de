"""A whole run: data → teacher → quantize → intervene → train → report → exports, each stage once."""
