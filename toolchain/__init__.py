"""The FPGA tools: yosys and nextpnr, synthesis counts."""
