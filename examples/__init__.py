"""Hardware configurations and worked examples."""
