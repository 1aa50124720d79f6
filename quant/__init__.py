"""DSConv in torch: quantizing, calibrating and converting networks, and the hardware mode."""
