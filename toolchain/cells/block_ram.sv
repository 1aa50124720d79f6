// What the models of block RAMs have in common; read before them.

// A parameter of a cell has the one value that its model knows, or the design is refused.
`define MUST_BE(name, value) \
    if (name != value) $fatal(1, `"name must be value, not %0d`", name);
`define MUST_SAY(name, value) \
    if (name != `"value`") $fatal(1, `"name must be value, not %s`", name);
`define MUST_SAY_EITHER(name, one, other) \
    if (name != `"one`" && name != `"other`") \
        $fatal(1, `"name must be one or other, not %s`", name);

// Sixteen parameters, numbered in hexadecimal: to declare them, and all in one word, number 0 lowest.
`define DECLARED(name) \
    name``0 = 0, name``1 = 0, name``2 = 0, name``3 = 0, name``4 = 0, name``5 = 0, name``6 = 0, \
    name``7 = 0, name``8 = 0, name``9 = 0, name``A = 0, name``B = 0, name``C = 0, name``D = 0, \
    name``E = 0, name``F = 0
`define JOINED(name) \
    name``F, name``E, name``D, name``C, name``B, name``A, name``9, name``8, name``7, name``6, \
    name``5, name``4, name``3, name``2, name``1, name``0

// The memory inside: two ports of one clock, port 0 called A and port 1 called B.
//
// Nine bits are a byte; ports of 1, 2 and 4 bits see eight of them. An address counts bits of eight-bit
// bytes; those below a port's width are ignored. Parameters are packed arrays with a field for a port.
//
// A bit that one port reads while the other writes it comes out inverted, unless SAFE says that the
// writing port delivers the old one to both. Two ports that write one bit end the simulation. The cell
// around it fills `memory` at the beginning.
module shiftcore_block_ram #(
    parameter int BITS = 18432,
    parameter bit [1:0][31:0] READ = 0,   // width in bits, 0 where the port does not read
    parameter bit [1:0][31:0] WRITE = 0,  // width in bits, 0 where it does not write
    parameter bit [1:0] KEEP = 0,         // the output stays in a cycle with a write
    parameter bit [1:0] OLD = 0,          // it is what was there before a write; else what is there after
    parameter bit [1:0] SAFE = 0,
    parameter bit [1:0][71:0] FIRST = 0,  // output before the first read
    parameter bit [1:0][71:0] CLEARED = 0 // output after a clear
) (
    input clock,
    input [1:0] enable,
    input [1:0] clear,                    // whether or not it is enabled
    input [1:0] writing,                  // a cycle with a write, of bytes or none
    input [1:0][7:0] bytes,
    input [1:0][15:0] address,
    input [1:0][71:0] data,
    output bit [1:0][71:0] q
);
    bit [BITS+71:0] memory;
    bit [1:0][71:0] mask, old, own, others;

    // First bit of the word at an address.
    function automatic int position(int width, bit [15:0] at);
        if (width < 9) return 9 * (int'(at) >> 3) + (int'(at) & 7 & -width);
        return 9 * ((int'(at) >> 3) & -(width / 9));
    endfunction

    function automatic bit [71:0] ones(int width);
        return ~(~72'd0 << width);
    endfunction

    // Bits of a word that begins at bit `from`, in a word that begins at bit `to`.
    function automatic bit [71:0] moved(bit [71:0] word, int from, int to);
        return from < to ? word >> (to - from) : word << (from - to);
    endfunction

    initial q = FIRST;

    always @(posedge clock) begin
        for (int p = 0; p < 2; p++) begin
            for (int k = 0; k < 8; k++) mask[p][9*k+:9] = {9{bytes[p][k]}};
            mask[p] &= enable[p] && writing[p] ? ones(WRITE[p]) : 72'd0;
            old[p] = memory[position(READ[p], address[p])+:72];
        end
        if ((mask[0] & moved(mask[1], position(WRITE[1], address[1]), position(WRITE[0], address[0]))) != 0)
            $fatal(1, "%m: both ports write the same bits");
        for (int p = 0; p < 2; p++) begin
            own[p] = moved(mask[p], position(WRITE[p], address[p]), position(READ[p], address[p]));
            others[p] = moved(mask[1-p], position(WRITE[1-p], address[1-p]), position(READ[p], address[p]));
            if (SAFE[1-p]) others[p] = 0;
            if (!OLD[p]) begin
                old[p] &= ~own[p];
                old[p] |= own[p] & moved(data[p], position(WRITE[p], address[p]), position(READ[p], address[p]));
            end
            if (clear[p]) q[p] <= CLEARED[p];
            else if (enable[p] && !(KEEP[p] && writing[p])) q[p] <= (old[p] ^ others[p]) & ones(READ[p]);
        end
        for (int p = 0; p < 2; p++)
            if (mask[p] != 0)
                memory[position(WRITE[p], address[p])+:72] =
                    (memory[position(WRITE[p], address[p])+:72] & ~mask[p]) | (data[p] & mask[p]);
    end
endmodule
