"""cocotb: build and cache simulators, drive the Verilog, compare with golden."""
