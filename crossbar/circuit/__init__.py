"""The resistive network of an array: wires, cells, drivers and amplifiers, and the currents that come of them."""
