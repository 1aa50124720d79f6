// A standalone image with a serial line of its own clock; see shiftcore.sim.standalone.
//
// requests.bin holds frames: 2 bytes a symbol; the symbols and the bytes of the reply to wait for, 4
// bytes each, lowest first. A symbol is a byte of the line, and 1 if its stop bit is low.
// replies.txt gets a line for each byte that came: its value, the frame it belongs to, the cycle of
// its start bit counted from the last stop bit of the frame, and whether its stop bit was high.
`timescale 1ns/1ps
module testbench;
  parameter BIT = 250000;     // ps of a bit, as this side has it; a cycle takes 10 ns
  parameter LIMIT = 1000000;  // cycles that a byte of a reply may take

  reg clk = 0, rst = 1;
  always #5 clk = ~clk;
  reg line = 1;
  wire answer;
  dut dut(.clk(clk), .rst(rst), .i_line(line), .o_line(answer));

  integer requests, replies, symbols, expected, received, frame, k;
  reg [63:0] cycle = 0, sent = 0, waited = 0;
  always @(posedge clk) cycle <= cycle + 1;

  function [7:0] next_byte(input integer file);
    next_byte = $fgetc(file);
  endfunction
  reg [7:0] b0, b1, b2, b3, value, flag;
  task next_word(output integer word);
    begin
      b0 = next_byte(requests); b1 = next_byte(requests);
      b2 = next_byte(requests); b3 = next_byte(requests);
      word = {b3, b2, b1, b0};
    end
  endtask

  task send(input [7:0] content, input low);
    integer bit_;
    begin
      line = 0;
      #(BIT / 1000.0);
      for (bit_ = 0; bit_ < 8; bit_ = bit_ + 1) begin
        line = content[bit_];
        #(BIT / 1000.0);
      end
      line = !low;
      #(BIT / 1000.0);
      line = 1;
    end
  endtask

  // The receiver: one byte after the other, whenever they come.
  reg [7:0] shift;
  reg [63:0] began;
  integer at;
  initial begin
    received = 0;
    frame = 0;
    wait (!rst);
    forever begin
      @(negedge answer);
      began = cycle;
      #(BIT / 2000.0);
      for (at = 0; at < 8; at = at + 1) begin
        #(BIT / 1000.0);
        shift = {answer, shift[7:1]};
      end
      #(BIT / 1000.0);
      $fdisplay(replies, "%0d %0d %0d %0d", shift, frame, began - sent, answer);
      received = received + 1;
    end
  end

  initial begin
    requests = $fopen("requests.bin", "rb");
    replies = $fopen("replies.txt", "w");
    repeat (4) @(posedge clk);
    rst = 0;
    #1000;
    next_word(symbols);
    while (!$feof(requests)) begin
      next_word(expected);
      for (k = 0; k < symbols; k = k + 1) begin
        value = next_byte(requests);
        flag = next_byte(requests);
        send(value, flag[0]);
      end
      sent = cycle;
      waited = 0;
      while (received < expected && waited < LIMIT) begin
        @(posedge clk);
        waited = waited + 1;
      end
      #(BIT / 1000.0);
      frame = frame + 1;
      received = 0;
      next_word(symbols);
    end
    $fclose(replies);
    $finish;
  end
endmodule
