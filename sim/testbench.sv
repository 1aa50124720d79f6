// The accelerator with its memory, driven by commands on standard input; see shiftcore.sim.system.
// Where there is no memory, and at beats that fail, transactions are answered with SLVERR.
//
//   w ADDRESS DATA   write a register            r ADDRESS   read one; answers "r DATA"
//   l FILE FIRST N   beats from a binary file    s FILE FIRST N   beats to a hexadecimal file
//   f FIRST N FAIL   beats that fail, or no longer do if FAIL is 0
//   m LATENCY GAP    cycles before the first beat of a burst, and between beats
//   t FILE           write what DRAIN writes to a file, a line each: bits, time, whether it is raw
//   d FILE FIRST LAST   dump a waveform from time FIRST to LAST, at which the simulation ends
//   i LIMIT          wait for the interrupt, at most so many cycles if LIMIT is not 0;
//                    answers "i 1 TIME", or "i 0 TIME" if it did not come
//   q                end
//
// Numbers are hexadecimal, times in ns; a cycle takes 10. Every command but r and i answers "ok".
`timescale 1ns/1ns
module testbench;
  parameter BUS = 64;
  parameter BEATS = 1048576;
  parameter TRACE = 512;
  parameter FLYING = 64;  // transactions that the memory holds
  localparam SHIFT = $clog2(BUS / 8);

  reg clk = 0, rst = 1;
  always #5 clk = ~clk;

  reg [BUS-1:0] mem [0:BEATS-1];
  reg failing [0:BEATS-1];
  integer each;
  initial for (each = 0; each < BEATS; each = each + 1) failing[each] = 0;
  function fails(input [39:0] at);
    fails = at >= BEATS || failing[at];
  endfunction
  reg [31:0] latency = 20, gap = 0;
  reg [63:0] now = 0;

  // Registers.
  reg [11:0] awaddr = 0, araddr = 0;
  reg [31:0] wdata = 0;
  reg awvalid = 0, wvalid = 0, arvalid = 0;
  wire awready, wready, bvalid, s_arready, rvalid;
  wire [31:0] s_rdata;
  wire [1:0] s_bresp, s_rresp;
  wire interrupt;

  // Memory, read side: transactions wait in a ring until their time has come.
  wire [39:0] m_araddr, m_awaddr;
  wire [7:0] m_arlen, m_awlen;
  wire m_arvalid, m_awvalid, m_wvalid, m_wlast, m_rready, m_bready;
  wire [BUS-1:0] m_wdata;
  wire [BUS/8-1:0] m_wstrb;
  reg [39:0] read_address [0:FLYING-1];
  reg [7:0] read_length [0:FLYING-1];
  reg [63:0] read_time [0:FLYING-1];
  integer read_head = 0, read_tail = 0, beat = 0;
  reg [63:0] read_next = 0;
  reg m_rvalid = 0, m_rlast = 0, m_rfail = 0;
  reg [BUS-1:0] m_rdata = 0;
  wire m_arready = (read_tail - read_head) < FLYING;
  wire read_ready = read_head != read_tail && now >= read_time[read_head % FLYING]
                    && now >= read_next && (!m_rvalid || m_rready);
  wire [39:0] read_at = (read_address[read_head % FLYING] >> SHIFT) + beat;
  always @(posedge clk) begin
    now <= now + 1;
    if (m_arvalid && m_arready && !rst) begin
      read_address[read_tail % FLYING] <= m_araddr;
      read_length[read_tail % FLYING] <= m_arlen;
      read_time[read_tail % FLYING] <= now + latency;
      read_tail <= read_tail + 1;
    end
    if (m_rvalid && m_rready) m_rvalid <= 0;
    if (read_ready) begin
      m_rvalid <= 1;
      m_rfail <= fails(read_at);
      m_rdata <= mem[read_at];
      m_rlast <= beat == read_length[read_head % FLYING];
      read_next <= now + 1 + gap;
      if (beat == read_length[read_head % FLYING]) begin
        beat <= 0;
        read_head <= read_head + 1;
      end else beat <= beat + 1;
    end
  end

  // Write side: a burst's beats come after its address.
  reg [39:0] write_address = 0;
  reg writing = 0, burst_fails = 0;
  reg [FLYING-1:0] response_fails = 0;
  reg [63:0] response_time [0:FLYING-1];
  integer response_head = 0, response_tail = 0, lane;
  wire m_awready = !writing && (response_tail - response_head) < FLYING;
  wire m_wready = writing;
  reg m_bvalid = 0, m_bfail = 0;
  always @(posedge clk) begin
    if (m_awvalid && m_awready && !rst) begin
      writing <= 1;
      burst_fails <= 0;
      write_address <= m_awaddr >> SHIFT;
    end
    if (m_wvalid && m_wready) begin
      for (lane = 0; lane < BUS / 8; lane = lane + 1)
        if (m_wstrb[lane] && !fails(write_address)) mem[write_address][8*lane +: 8] <= m_wdata[8*lane +: 8];
      write_address <= write_address + 1;
      burst_fails <= burst_fails || fails(write_address);
      if (m_wlast) begin
        writing <= 0;
        response_time[response_tail % FLYING] <= now + latency;
        response_fails[response_tail % FLYING] <= burst_fails || fails(write_address);
        response_tail <= response_tail + 1;
      end
    end
    if (m_bvalid && m_bready) m_bvalid <= 0;
    if (response_head != response_tail && now >= response_time[response_head % FLYING]
        && (!m_bvalid || m_bready)) begin
      m_bvalid <= 1;
      m_bfail <= response_fails[response_head % FLYING];
      response_head <= response_head + 1;
    end
  end

  wire [TRACE+1:0] trace;
  shiftcore dut (
    .clk(clk), .rst(rst),
    .s_axi_awaddr(awaddr), .s_axi_awvalid(awvalid), .s_axi_awready(awready),
    .s_axi_wdata(wdata), .s_axi_wstrb(4'hf), .s_axi_wvalid(wvalid), .s_axi_wready(wready),
    .s_axi_bresp(s_bresp), .s_axi_bvalid(bvalid), .s_axi_bready(1'b1),
    .s_axi_araddr(araddr), .s_axi_arvalid(arvalid), .s_axi_arready(s_arready),
    .s_axi_rdata(s_rdata), .s_axi_rresp(s_rresp), .s_axi_rvalid(rvalid), .s_axi_rready(1'b1),
    .m_axi_araddr(m_araddr), .m_axi_arlen(m_arlen), .m_axi_arvalid(m_arvalid),
    .m_axi_arready(m_arready), .m_axi_arid(), .m_axi_arsize(), .m_axi_arburst(),
    .m_axi_arcache(), .m_axi_arprot(),
    .m_axi_rid(1'b0), .m_axi_rdata(m_rdata), .m_axi_rresp({m_rfail, 1'b0}), .m_axi_rlast(m_rlast),
    .m_axi_rvalid(m_rvalid), .m_axi_rready(m_rready),
    .m_axi_awaddr(m_awaddr), .m_axi_awlen(m_awlen), .m_axi_awvalid(m_awvalid),
    .m_axi_awready(m_awready), .m_axi_awid(), .m_axi_awsize(), .m_axi_awburst(),
    .m_axi_awcache(), .m_axi_awprot(),
    .m_axi_wdata(m_wdata), .m_axi_wstrb(m_wstrb), .m_axi_wlast(m_wlast),
    .m_axi_wvalid(m_wvalid), .m_axi_wready(m_wready),
    .m_axi_bid(1'b0), .m_axi_bresp({m_bfail, 1'b0}), .m_axi_bvalid(m_bvalid), .m_axi_bready(m_bready),
    .o_interrupt(interrupt), .o_trace(trace)
  );

  integer traced = 0;
  always @(posedge clk)
    if (trace[0] && traced != 0) $fwrite(traced, "%h\n", {trace[TRACE+1:2], $time, 7'b0, trace[1]});

  // In Verilator only the end of the simulation ends a waveform.
  reg [63:0] dump_first = {64{1'b1}}, dump_last = {64{1'b1}};
  reg dumping = 0;
  always @(posedge clk) begin
    if (!dumping && $time >= dump_first) begin
      dumping <= 1;
      $dumpvars(0, testbench);
    end
    if ($time >= dump_last) $finish;
  end

  // Inputs change at the falling edge, so that no simulator sees them move at the rising one.
  integer commands, file, got;
  reg [31:0] a, b, c;
  reg [8*1024-1:0] name;
  reg [7:0] command;
  reg going = 1, answered = 0;
  reg [1:0] took = 0;
  initial begin
    commands = $fopen("/dev/stdin", "r");
    repeat (4) @(negedge clk);
    rst = 0;
    @(negedge clk);
    while (going) begin
      got = $fscanf(commands, " %c", command);
      if (got != 1) going = 0;
      else case (command)
        "w": begin
          got = $fscanf(commands, "%h %h", a, b);
          awaddr = a[11:0]; wdata = b; awvalid = 1; wvalid = 1; answered = 0;
          while (!answered) begin
            @(posedge clk);
            took = {awready, wready};
            answered = bvalid;
            @(negedge clk);
            if (took[1]) awvalid = 0;
            if (took[0]) wvalid = 0;
          end
          $display("ok");
        end
        "r": begin
          got = $fscanf(commands, "%h", a);
          araddr = a[11:0]; arvalid = 1; answered = 0;
          while (!answered) begin
            @(posedge clk);
            took[0] = s_arready;
            answered = rvalid;
            b = s_rdata;
            @(negedge clk);
            if (took[0]) arvalid = 0;
          end
          $display("r %h", b);
        end
        "l": begin
          got = $fscanf(commands, "%s %h %h", name, a, b);
          file = $fopen(name, "rb");
          got = $fread(mem, file, a, b);
          $fclose(file);
          $display("ok");
        end
        "s": begin
          got = $fscanf(commands, "%s %h %h", name, a, b);
          $writememh(name, mem, a, a + b - 1);
          $display("ok");
        end
        "f": begin
          got = $fscanf(commands, "%h %h %h", a, b, c);
          for (each = 0; each < b; each = each + 1) failing[a + each] = c[0];
          $display("ok");
        end
        "m": begin
          got = $fscanf(commands, "%h %h", latency, gap);
          $display("ok");
        end
        "t": begin
          if (traced != 0) $fclose(traced);
          got = $fscanf(commands, "%s", name);
          traced = $fopen(name, "w");
          $display("ok");
        end
        "d": begin
          got = $fscanf(commands, "%s %h %h", name, dump_first, dump_last);
          $dumpfile(name);
          $display("ok");
        end
        "i": begin
          got = $fscanf(commands, "%h", a);
          if (a == 0) begin
            if (!interrupt) @(posedge interrupt);
            @(negedge clk);
          end
          while (a != 0 && !interrupt) begin
            @(negedge clk);
            a = a - 1;
          end
          if (traced != 0) $fflush(traced);
          $display("i %h %h", interrupt, $time);
        end
        default: going = 0;
      endcase
      $fflush();
    end
    $finish;
  end
endmodule
