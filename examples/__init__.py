"""Hardware configurations, published networks and a worked example."""
