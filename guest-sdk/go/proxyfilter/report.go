package proxyfilter

import (
	"fmt"
	"slices"
	"strings"

	"github.com/proxy-golang/proxy_golang/guest-sdk/go/internal/bridge"
)

// RecipeStep is one measure by which the SDK keeps Go's runtime from getting in
// the way of the proxy's event loops.
type RecipeStep struct {
	// Name is batch, sysmon, procs, ring or yield.
	Name string
	// State is done, off (switched off), skipped (not needed or not possible here)
	// or failed.
	State string
	// Detail says what was found or why not.
	Detail string
}

// Report is the state of the runtime recipe.
type Report struct{ Steps []RecipeStep }

func (r Report) String() string {
	var b strings.Builder
	for i, s := range r.Steps {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s: %s", s.Name, s.State)
		if s.Detail != "" {
			fmt.Fprintf(&b, " (%s)", s.Detail)
		}
	}
	return b.String()
}

// RuntimeReport says which steps of the recipe are in force. It is empty in a
// program that was not loaded by a proxy.
func RuntimeReport() (r Report) {
	if bridge.Recipe.Report != nil {
		for _, s := range bridge.Recipe.Report() {
			r.Steps = append(r.Steps, RecipeStep(s))
		}
	}
	return r
}

// DisableRecipe switches steps of the recipe off for the whole library. Call it
// in an init function; the environment variable PROXY_GOLANG_GO_RECIPE does the
// same from outside (-sysmon,-batch). It panics at an unknown name.
func DisableRecipe(steps ...string) {
	for _, s := range steps {
		if !slices.Contains(bridge.RecipeSteps[:], s) {
			panic(fmt.Sprintf("proxyfilter: DisableRecipe(%q): the steps are %s", s, strings.Join(bridge.RecipeSteps[:], ", ")))
		}
		if bridge.Recipe.Off == nil {
			bridge.Recipe.Off = map[string]bool{}
		}
		bridge.Recipe.Off[s] = true
	}
}
