"""The yardstick: which games a policy is scored on, how, and what is reported; docs/benchmark.md has the rules."""
