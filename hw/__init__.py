"""The gateware in Amaranth: PE, array, scale unit, requantizer, and Verilog emission."""
