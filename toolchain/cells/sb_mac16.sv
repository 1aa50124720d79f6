// The DSP block of iCE40 with two multipliers of 8 bits, the registers of A, of the products and of
// the sums. Source: Lattice FPGA-TN-02007 and the SBT ICE Technology Library.
// For simulating the RTL that instantiates it; netlists take yosys' model of it.
module SB_MAC16 #(
    parameter bit MODE_8x8 = 0, A_SIGNED = 0, B_SIGNED = 0,
    parameter bit A_REG = 0, TOP_8x8_MULT_REG = 0, BOT_8x8_MULT_REG = 0,
    parameter bit TOPADDSUB_UPPERINPUT = 0, BOTADDSUB_UPPERINPUT = 0,
    parameter bit [1:0] TOPADDSUB_LOWERINPUT = 0, BOTADDSUB_LOWERINPUT = 0,
    parameter bit [1:0] TOPOUTPUT_SELECT = 0, BOTOUTPUT_SELECT = 0
) (
    input CLK, CE,
    input [15:0] A, B, C, D,
    input AHOLD, BHOLD, CHOLD, DHOLD, OHOLDTOP, OHOLDBOT,
    input IRSTTOP, IRSTBOT, ORSTTOP, ORSTBOT, OLOADTOP, OLOADBOT, ADDSUBTOP, ADDSUBBOT,
    input CI, ACCUMCI, SIGNEXTIN,
    output [31:0] O
);
    initial begin
        if (!(MODE_8x8 && A_SIGNED && B_SIGNED && A_REG && TOP_8x8_MULT_REG && BOT_8x8_MULT_REG))
            $fatal(1, "%m: two signed multipliers with registers must be asked for");
        if (!(TOPADDSUB_UPPERINPUT && BOTADDSUB_UPPERINPUT)
            || TOPADDSUB_LOWERINPUT != 1 || BOTADDSUB_LOWERINPUT != 1)
            $fatal(1, "%m: C and D must be added to the products");
        if (TOPOUTPUT_SELECT != BOTOUTPUT_SELECT || (TOPOUTPUT_SELECT != 1 && TOPOUTPUT_SELECT != 2))
            $fatal(1, "%m: sums or products must be put out");
    end

    reg signed [7:0] high, low;
    reg signed [15:0] upper, lower;
    reg [31:0] sums;
    initial {high, low, upper, lower, sums} = 0;
    wire signed [7:0] right_high = B[15:8], right_low = B[7:0];
    assign O = TOPOUTPUT_SELECT == 1 ? sums : {upper, lower};

    always @(posedge CLK) begin
        if (!AHOLD) {high, low} <= A;
        upper <= high * right_high;
        lower <= low * right_low;
        sums <= {C + upper, D + lower};
        if (!CE) $fatal(1, "%m: CE must be 1");
        if ({BHOLD, CHOLD, DHOLD, OHOLDTOP, OHOLDBOT, IRSTTOP, IRSTBOT, ORSTTOP, ORSTBOT, OLOADTOP,
             OLOADBOT, ADDSUBTOP, ADDSUBBOT, CI, ACCUMCI, SIGNEXTIN} != 0)
            $fatal(1, "%m: what is not used must be 0");
    end
endmodule
