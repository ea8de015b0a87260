//go:build !race

package proxyfiltertest_test

const raceEnabled = false
