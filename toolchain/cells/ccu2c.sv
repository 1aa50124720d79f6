// The carry cell of ECP5: two bits of a sum. Source: Lattice FPGA-TN-02200.
// For simulating the RTL that instantiates it; netlists take yosys' model of it.
module CCU2C #(
    parameter [15:0] INIT0 = 16'h0000,
    parameter [15:0] INIT1 = 16'h0000,
    parameter INJECT1_0 = "YES",
    parameter INJECT1_1 = "YES"
) (
    input CIN, A0, B0, C0, D0, A1, B1, C1, D1,
    output S0, S1, COUT
);
    wire sum0 = INIT0[{D0, C0, B0, A0}];
    wire sum1 = INIT1[{D1, C1, B1, A1}];
    wire both0 = INJECT1_0 == "NO" & INIT0[{2'b00, B0, A0}];
    wire both1 = INJECT1_1 == "NO" & INIT1[{2'b00, B1, A1}];
    wire carry = sum0 ? CIN : both0;
    assign S0 = sum0 ^ (INJECT1_0 == "NO" & CIN);
    assign S1 = sum1 ^ (INJECT1_1 == "NO" & carry);
    assign COUT = sum1 ? carry : both1;
endmodule
