"""The page that people look at: one HTML file, made from a Result and its tokens alone."""
