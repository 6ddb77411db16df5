package main

import (
	"net/http"
	"slices"
)

// reload reads configuration and certificate again. What is served, and how it
// is logged, changes at once; for the rest the log says that it takes another
// version. On an error nothing has changed.
func (s *server) reload() error {
	o, err := loadOptions(s.args, s.environ)
	if err != nil {
		return err
	}
	var now, later []string
	for _, name := range changed(s.options, o) {
		if slices.Contains(live, name) && (s.cert != nil || name != "cert" && name != "key") {
			now = append(now, name)
		} else {
			later = append(later, name)
		}
	}
	// What can go wrong comes first.
	var site http.Handler
	if o.site.root != s.options.site.root || o.schema.proxy != s.options.schema.proxy || o.site.accessLog != s.options.site.accessLog {
		if site, err = o.site.handler(s.identify, s.log.Logger); err != nil {
			return err
		}
	}
	if s.cert != nil {
		if err := s.cert.load(pairFiles{o.cert, o.key}); err != nil {
			return err
		}
	}
	if site != nil {
		s.site.store(site)
	}
	s.log.level.Set(o.logLevel)
	for _, name := range now {
		s.options.schema.take(name, o.schema)
	}
	s.options.site = o.site
	s.logger().Info("configuration read again", "changed", now)
	if len(later) > 0 {
		s.logger().Warn("some of the configuration takes effect with the next version", "names", later)
	}
	return nil
}
