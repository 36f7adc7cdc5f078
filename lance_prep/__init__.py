"""Text in, versioned Lance token dataset out, training at memory-map speed from it."""
