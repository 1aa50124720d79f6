// A block RAM of Xilinx 7 with two ports of up to `BYTES bytes of nine bits. In RAM_MODE SDP A reads, B
// writes, and a word of twice the width takes the data pins of both, the lower half A's.
// A read that meets a write of the other port is undefined unless the writing port is READ_FIRST.
// Source: AMD UG473. RAMB18E1 has fewer of the parameters than are declared here.
module `CELL #(
    parameter RAM_MODE = "TDP",
    parameter int READ_WIDTH_A = 0, READ_WIDTH_B = 0, WRITE_WIDTH_A = 0, WRITE_WIDTH_B = 0,
    parameter WRITE_MODE_A = "WRITE_FIRST", WRITE_MODE_B = "WRITE_FIRST",
    parameter int DOA_REG = 0, DOB_REG = 0,
    parameter RAM_EXTENSION_A = "NONE", RAM_EXTENSION_B = "NONE",
    parameter bit [9*`BYTES-1:0] INIT_A = 0, INIT_B = 0, SRVAL_A = 0, SRVAL_B = 0,
    parameter bit [255:0]
        `DECLARED(INIT_0), `DECLARED(INIT_1), `DECLARED(INIT_2), `DECLARED(INIT_3),
        `DECLARED(INIT_4), `DECLARED(INIT_5), `DECLARED(INIT_6), `DECLARED(INIT_7),
        `DECLARED(INITP_0)
) (
    input CLKARDCLK, CLKBWRCLK, ENARDEN, ENBWREN, REGCEAREGCE, REGCEB,
    input RSTRAMARSTRAM, RSTRAMB, RSTREGARSTREG, RSTREGB,
    input [`BYTES == 4 ? 15 : 13:0] ADDRARDADDR, ADDRBWRADDR,
    input [`BYTES-1:0][7:0] DIADI, DIBDI,
    input [`BYTES-1:0] DIPADIP, DIPBDIP,
    input [`BYTES-1:0] WEA,
    input [2*`BYTES-1:0] WEBWE,
    output [`BYTES-1:0][7:0] DOADO, DOBDO,
    output [`BYTES-1:0] DOPADOP, DOPBDOP
);
    localparam int WIDE = 18 * `BYTES;
    localparam bit SDP = RAM_MODE == "SDP";
    `MUST_BE(DOA_REG, 0)
    `MUST_BE(DOB_REG, 0)
    `MUST_SAY(RAM_EXTENSION_A, NONE)
    `MUST_SAY(RAM_EXTENSION_B, NONE)
    if (SDP) begin
        `MUST_BE(READ_WIDTH_B, 0)
        `MUST_BE(WRITE_WIDTH_A, 0)
    end

    // Output registers' values, given with all parity bits on top, as bytes of nine bits.
    function automatic bit [WIDE-1:0] half(int width, bit [WIDE/2-1:0] given);
        if (width < 9) return WIDE'(given);
        half = 0;
        for (int k = 0; k < width / 9; k++) half[9*k+:9] = {given[width/9*8+k], given[8*k+:8]};
    endfunction

    function automatic bit [71:0] word(bit [WIDE/2-1:0] b, bit [WIDE/2-1:0] a);
        if (READ_WIDTH_A != WIDE) return 72'(half(READ_WIDTH_A, a));
        return 72'(half(WIDE / 2, a)) | 72'(half(WIDE / 2, b)) << WIDE / 2;
    endfunction

    wire clock = CLKARDCLK | CLKBWRCLK;
    wire [1:0] enable = {ENBWREN, ENARDEN};
    wire [1:0][71:0] q;
    bit [WIDE-1:0] in;  // B's bytes above A's
    always @*
        for (int k = 0; k < `BYTES; k++) begin
            in[9*k+:9] = {DIPADIP[k], DIADI[k]};
            in[9*(`BYTES+k)+:9] = {DIPBDIP[k], DIBDI[k]};
        end

    shiftcore_block_ram #(
        .BITS(9216 * `BYTES),
        .READ({READ_WIDTH_B, READ_WIDTH_A}),
        .WRITE({WRITE_WIDTH_B, WRITE_WIDTH_A}),
        .KEEP({WRITE_MODE_B == "NO_CHANGE", WRITE_MODE_A == "NO_CHANGE"}),
        .OLD({WRITE_MODE_B == "READ_FIRST", WRITE_MODE_A == "READ_FIRST"}),
        .SAFE({WRITE_MODE_B == "READ_FIRST", WRITE_MODE_A == "READ_FIRST"}),
        .FIRST({72'(half(READ_WIDTH_B, INIT_B)), word(INIT_B, INIT_A)}),
        .CLEARED({72'(half(READ_WIDTH_B, SRVAL_B)), word(SRVAL_B, SRVAL_A)})
    ) ram (
        .clock,
        .enable,
        .clear({RSTRAMB, RSTRAMARSTRAM} & enable),
        .writing({WEBWE != 0, WEA != 0}),
        .bytes({8'(WEBWE), 8'(WEA)}),
        .address({16'(ADDRBWRADDR[`BYTES == 4 ? 14 : 13:0]), 16'(ADDRARDADDR[`BYTES == 4 ? 14 : 13:0])}),
        .data({72'(WRITE_WIDTH_B == WIDE ? in : in >> WIDE / 2), 72'(in[WIDE/2-1:0])}),
        .q
    );

    localparam bit [128*256-1:0] DATA = {
        `JOINED(INIT_7), `JOINED(INIT_6), `JOINED(INIT_5), `JOINED(INIT_4),
        `JOINED(INIT_3), `JOINED(INIT_2), `JOINED(INIT_1), `JOINED(INIT_0)
    };
    localparam bit [16*256-1:0] PARITY = {`JOINED(INITP_0)};
    initial
        for (int k = 0; k < 1024 * `BYTES; k++) ram.memory[9*k+:9] = {PARITY[k], DATA[8*k+:8]};

    always @(posedge clock)
        if ({ENBWREN & ~CLKBWRCLK, ENARDEN & ~CLKARDCLK} != 0)
            $fatal(1, "%m: CLKARDCLK and CLKBWRCLK must be one clock");

    wire [WIDE/2-1:0] above = READ_WIDTH_A == WIDE ? q[0][WIDE/2+:WIDE/2] : q[1][WIDE/2-1:0];
    for (genvar k = 0; k < `BYTES; k++) begin : byte_
        assign {DOPADOP[k], DOADO[k]} = q[0][9*k+:9];
        assign {DOPBDOP[k], DOBDO[k]} = above[9*k+:9];
    end
endmodule
