"""What the tests of several rooms use: fixtures, plans and roots made by hand, stand-ins for workers and launchers."""
