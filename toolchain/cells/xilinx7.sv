// Xilinx 7: the cells that yosys has only empty models of, as far as it uses them.

`define CELL RAMB18E1
`define BYTES 2
`include "ramb.sv"

`undef CELL
`undef BYTES
`define CELL RAMB36E1
`define BYTES 4
`include "ramb.sv"
