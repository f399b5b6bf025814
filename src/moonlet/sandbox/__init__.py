"""What a model's tool calls run in. A leaf: every tool is a plain function from text to text, with its bounds."""
