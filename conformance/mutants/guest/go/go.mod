module conformance/guest

go 1.24
