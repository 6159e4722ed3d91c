"""The areas, each a folder that can be read alone: nothing outside imports one."""
