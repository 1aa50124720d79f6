// ECP5: the memory that yosys maps to and has no model of, as far as it uses it.
// Source: Lattice FPGA-TN-02204.

// A block RAM of 18 Kbit with two ports. A is 36 bits wide only for writing, B only for reading; the
// upper half of the word is then on B's DI, the lower half of what B reads on A's DO.
// A read that meets a write of the other port is undefined in every write mode.
module DP16KD #(
    parameter int DATA_WIDTH_A = 18, DATA_WIDTH_B = 18,
    parameter REGMODE_A = "NOREG", REGMODE_B = "NOREG",
    parameter RESETMODE = "SYNC", ASYNC_RESET_RELEASE = "SYNC",
    parameter CSDECODE_A = "0b000", CSDECODE_B = "0b000",
    parameter CLKAMUX = "CLKA", CLKBMUX = "CLKB",
    parameter WRITEMODE_A = "NORMAL", WRITEMODE_B = "NORMAL",
    parameter GSR = "DISABLED",
    parameter bit [319:0]
        `DECLARED(INITVAL_0), `DECLARED(INITVAL_1), `DECLARED(INITVAL_2), `DECLARED(INITVAL_3)
) (
    input CLKA, CEA, OCEA, WEA, RSTA, CSA0, CSA1, CSA2,
    input ADA0, ADA1, ADA2, ADA3, ADA4, ADA5, ADA6, ADA7, ADA8, ADA9, ADA10, ADA11, ADA12, ADA13,
    input DIA0, DIA1, DIA2, DIA3, DIA4, DIA5, DIA6, DIA7, DIA8, DIA9, DIA10, DIA11, DIA12, DIA13,
    DIA14, DIA15, DIA16, DIA17,
    output DOA0, DOA1, DOA2, DOA3, DOA4, DOA5, DOA6, DOA7, DOA8, DOA9, DOA10, DOA11, DOA12, DOA13,
    DOA14, DOA15, DOA16, DOA17,
    input CLKB, CEB, OCEB, WEB, RSTB, CSB0, CSB1, CSB2,
    input ADB0, ADB1, ADB2, ADB3, ADB4, ADB5, ADB6, ADB7, ADB8, ADB9, ADB10, ADB11, ADB12, ADB13,
    input DIB0, DIB1, DIB2, DIB3, DIB4, DIB5, DIB6, DIB7, DIB8, DIB9, DIB10, DIB11, DIB12, DIB13,
    DIB14, DIB15, DIB16, DIB17,
    output DOB0, DOB1, DOB2, DOB3, DOB4, DOB5, DOB6, DOB7, DOB8, DOB9, DOB10, DOB11, DOB12, DOB13,
    DOB14, DOB15, DOB16, DOB17
);
    `MUST_SAY_EITHER(REGMODE_A, NOREG, OUTREG)
    `MUST_SAY_EITHER(REGMODE_B, NOREG, OUTREG)
    `MUST_SAY(CSDECODE_A, 0b000)
    `MUST_SAY(CSDECODE_B, 0b000)
    `MUST_SAY(CLKAMUX, CLKA)
    `MUST_SAY(CLKBMUX, CLKB)
    `MUST_SAY(GSR, DISABLED)
    localparam bit WIDE = DATA_WIDTH_A == 36;
    if (DATA_WIDTH_B == 36 && !WIDE)
        $fatal(1, "DATA_WIDTH_A must be 36 as DATA_WIDTH_B is, not %0d", DATA_WIDTH_A);

    wire [1:0][13:0] address = {
        ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0,
        ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0
    };
    wire [35:0] in = {
        DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5, DIB4,
        DIB3, DIB2, DIB1, DIB0, DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8,
        DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1, DIA0
    };
    wire clock = CLKA | CLKB;
    wire [1:0] enable = {CEB & ~CSB0 & ~CSB1 & ~CSB2, CEA & ~CSA0 & ~CSA1 & ~CSA2};
    wire [1:0] writing = {WEB, WEA};
    wire [1:0] reset = {RSTB, RSTA};
    wire [1:0][71:0] q, read;
    bit [1:0][71:0] held;

    // Enables of bytes take the place of address bits that a wide word does not need.
    function automatic bit [7:0] bytes(int width, bit [3:0] low);
        return width == 36 ? {4'd0, low} : width == 18 ? {6'd0, low[1:0]} : 8'd1;
    endfunction

    shiftcore_block_ram #(
        .BITS(18432),
        .READ({DATA_WIDTH_B, WIDE ? 0 : DATA_WIDTH_A}),
        .WRITE({WIDE ? 0 : DATA_WIDTH_B, DATA_WIDTH_A}),
        .KEEP({WRITEMODE_B == "NORMAL", WRITEMODE_A == "NORMAL"}),
        .OLD({WRITEMODE_B == "READBEFOREWRITE", WRITEMODE_A == "READBEFOREWRITE"})
    ) ram (
        .clock,
        .enable,
        .clear(reset),
        .writing,
        .bytes({bytes(DATA_WIDTH_B, address[1][3:0]), bytes(DATA_WIDTH_A, address[0][3:0])}),
        .address({2'd0, address[1], 2'd0, address[0]}),
        .data({54'd0, in[35:18], 36'd0, in}),
        .q
    );

    // Words of 18 bits lie in fields of 20.
    localparam bit [64*320-1:0] WORDS = {
        `JOINED(INITVAL_3), `JOINED(INITVAL_2), `JOINED(INITVAL_1), `JOINED(INITVAL_0)
    };
    initial for (int k = 0; k < 1024; k++) ram.memory[18*k+:18] = WORDS[20*k+:18];

    assign read = {
        REGMODE_B == "NOREG" ? q[1] : held[1], REGMODE_A == "NOREG" ? q[0] : held[0]
    };
    always @(posedge clock) begin
        if (OCEA) held[0] <= q[0];
        if (OCEB) held[1] <= q[1];
        if (reset != 0 && read != q) $fatal(1, "%m: an output register must not be reset");
        if ({CEB & ~CLKB, CEA & ~CLKA} != 0) $fatal(1, "%m: CLKA and CLKB must be one clock");
        if (reset != 0 && RESETMODE != "SYNC") $fatal(1, "%m: RESETMODE must be SYNC for a reset");
        if ((reset & enable & writing) != 0) $fatal(1, "%m: a reset must not meet a write");
    end

    assign {
        DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4,
        DOB3, DOB2, DOB1, DOB0
    } = DATA_WIDTH_B == 36 ? read[1][35:18] : read[1][17:0];
    assign {
        DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5, DOA4,
        DOA3, DOA2, DOA1, DOA0
    } = DATA_WIDTH_B == 36 ? read[1][17:0] : read[0][17:0];
endmodule
