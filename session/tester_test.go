package session

import (
	"testing"

	"github.com/gin-contrib/sessions"
	"github.com/gin-contrib/sessions/tester"
	"github.com/gin-gonic/gin"

	"github.com/highball-go/highball/internal/rig"
)

func TestGinContribsSuitePasses(t *testing.T) {
	gin.SetMode(gin.ReleaseMode)
	addr := rig.Redis(t).Addr
	newStore := func(t *testing.T) sessions.Store {
		t.Helper()
		return newStore(t, clientOf(t, addr), Options{})
	}
	t.Run("GetSet", func(t *testing.T) { tester.GetSet(t, newStore) })
	t.Run("DeleteKey", func(t *testing.T) { tester.DeleteKey(t, newStore) })
	t.Run("Flashes", func(t *testing.T) { tester.Flashes(t, newStore) })
	t.Run("Clear", func(t *testing.T) { tester.Clear(t, newStore) })
	t.Run("Options", func(t *testing.T) { tester.Options(t, newStore) })
	t.Run("Many", func(t *testing.T) { tester.Many(t, newStore) })
}
